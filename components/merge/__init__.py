"""The Merge tab: a method with its parameters, its report, its download."""
