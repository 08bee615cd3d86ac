"""Rows that are printed as they come, and kept for a document."""


class Table:
    """Rows that are printed as they come, and again as markdown."""

    def __init__(self, head, widths):
        self.rows, self.head, self.widths = [], head, widths

    def begin(self):
        self.line(self.head)

    def add(self, cells):
        self.rows.append(cells)
        self.line(cells)

    def line(self, cells):
        padded = [str(cell).ljust(width) if width > 0 else str(cell).rjust(-width)
                  for cell, width in zip(cells, self.widths)]
        print("  ".join(padded).rstrip(), flush=True)

    def markdown(self):
        if not self.rows:
            return ""
        marks = ["---" if width > 0 else "---:" for width in self.widths]
        lines = [self.head, marks] + self.rows
        return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n\n"
