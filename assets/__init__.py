"""What ships with Brickyard: adapters, task rows, and (in :mod:`assets.build`) the commands that remake them."""
