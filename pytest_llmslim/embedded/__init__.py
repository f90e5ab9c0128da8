"""A made-up language with a known floor, and two small models of it that come with the package."""
