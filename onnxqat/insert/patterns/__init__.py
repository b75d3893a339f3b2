"""Which nodes become one kernel of the target: one file per operator family."""
