"""The ledger: every statement of the source documents with a verdict, and evidence that runs the shipped functions."""
