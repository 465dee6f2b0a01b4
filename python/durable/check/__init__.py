"""Check workflow code without running it: what cannot be the same in every replay.

rules   what is found, and what to use instead
names   what the names in a module mean
scan    which code is workflow code, and the findings in it
"""

from durable.check.scan import Finding, check_file, check_source

__all__ = ["Finding", "check_file", "check_source"]
