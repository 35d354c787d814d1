"""One command a table: recipes, how they are run, and the report beside what was published."""
