"""Parts of the reliability bench: noise, the rules that are compared on it, tables, goals, and live runs."""
