"""The sets of the zoo, one per module: the models of a library, or those written here."""
