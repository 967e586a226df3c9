"""Words for the progress of a comparison."""


def outcome(row: dict) -> str:
    """What came of a run that has ended."""
    if row['status'] == 'failed':
        return row['error']
    if row['value'] is None:
        return f'{row["metric"]} {row["val_value"]:g} (val)'
    return f'{row["metric"]} {row["value"]:g} ({row["val_value"]:g} val)'


def minutes(seconds: float) -> str:
    """Seconds as a reader wants them."""
    hours, rest = divmod(round(seconds / 60), 60)
    if hours:
        return f'{hours} h {rest:02d} min'
    return f'{rest} min' if seconds >= 60 else f'{seconds:.0f} s'
