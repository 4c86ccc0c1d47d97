"""The measured claims of the README, each against a peer in the same run."""
