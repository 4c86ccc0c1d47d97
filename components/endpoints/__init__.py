"""The named endpoints for programs, and the page that documents them."""
