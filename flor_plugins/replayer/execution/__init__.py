"""Where tasks are done when it is not by processes of this machine alone."""
