"""Results as people read them: tables, a web page, the zoo."""
