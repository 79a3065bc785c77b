"""Path patching between roles: graphs of roles, their runs, and the search for paths."""
