"""The Gate tab: training gates, and what trained ones choose."""
