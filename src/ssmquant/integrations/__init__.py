"""Bridges to other libraries; nothing of ours imports them but the package itself, when the library is there."""
