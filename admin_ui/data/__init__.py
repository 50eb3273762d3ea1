"""What the pages show: read from the bus, bounded, sorted and paged. Knows no request and no HTML."""
