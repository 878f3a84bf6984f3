"""The command line; wiring.py is the only file that knows every room."""

__all__ = [
    "chat",
    "doctor",
    "export",
    "invoice",
    "invoice_pdf",
    "journal",
    "key",
    "keys",
    "ledger",
    "ledger_at",
    "main",
    "period",
    "picture",
    "prices",
    "quota",
    "report",
    "table",
    "tiers",
    "up",
    "wiring",
]
