"""What is searched, a subject a module; each check enters itself in `tests.fuzz.case.CHECKS`."""
