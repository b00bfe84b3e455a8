"""`aft bench serve`: a client that loads a service and says what it saw."""
