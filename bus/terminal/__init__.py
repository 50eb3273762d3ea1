"""The command line: one tree of commands for `manage.py bus` and `jitney`, in need of the extra [cli]."""
