"""An edit of the working tree is found, reviewed, and carried to old versions of the code."""
