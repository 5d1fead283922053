"""Files of other frameworks, and our own: a module for each, imported when it is used."""
