"""What a running service endures: one scenario a file. Each starts a server of its own and says what broke."""
