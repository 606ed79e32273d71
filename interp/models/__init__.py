"""Loading models and pairs strictly, and the table of the sites where they can be read or edited."""
