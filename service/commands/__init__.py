"""What `aft` does beside serving: a module a command, in lazy imports of service/cli.py."""
