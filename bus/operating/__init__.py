"""The operator's verbs: on topics, groups, dead letters, pending and delayed messages."""
