"""The journal: what every process did, kept so that nothing is lost and nothing done twice."""
