"""Pictures side by side: contact sheets, their labels and colours, and what is drawn over pictures."""
