import numpy as np
import pytest

from alseg.data.array_order import row_major


@pytest.mark.parametrize("shape", [(1, 16, 16, 16), (1, 33, 7, 50), (2, 5, 40, 17), (1, 1, 3, 1)])
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_each_voxel_stays_where_it_is(shape: tuple[int, ...], dtype: type) -> None:
    values = np.random.default_rng(0).normal(0, 1000, shape)
    voxels = np.asfortranarray(values.astype(dtype))
    copy = row_major(voxels)
    assert copy.flags.c_contiguous
    assert copy.dtype == np.float32
    np.testing.assert_array_equal(copy, voxels.astype(np.float32))
    copy += 1
    np.testing.assert_array_equal(voxels, values.astype(dtype))
