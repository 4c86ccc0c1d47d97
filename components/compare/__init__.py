"""The Compare tab: variants side by side, as texts or pictures; axes, scores, blind votes, exports."""
