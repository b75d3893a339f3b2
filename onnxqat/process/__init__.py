"""This process and those that it starts or joins: signals, ranks, the search path, the user's code that runs in it."""
