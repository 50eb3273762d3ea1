"""An app whose workers run different versions of its code: FLEET_CODE says which handlers there are."""
