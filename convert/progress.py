"""The progress bar of everything that moves weights."""

from tqdm import tqdm


def weights_bar(name: str, size: int) -> tqdm:
    """A bar over `size` bytes of the component `name`, with their rate; silent where nobody watches."""
    return tqdm(total=size, unit="B", unit_scale=True, desc=name, dynamic_ncols=True, disable=None)
