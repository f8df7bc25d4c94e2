#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "paperlab/core/error.h"
#include "paperlab/io/npy_internal.h"
#include "tests/fuzz/targets.h"

namespace paperlab::io {
namespace {

void must(bool holds) {
  if (!holds) {
    std::abort();
  }
}

// What the writer makes of this array is read as the same array.
void check_round_trip(const NpyArray& array) {
  must(tensor_bytes(array.type, array.shape) == array.bytes.size());
  must(row_major(array).bytes.size() == array.bytes.size());
  const std::string header = npy_header("out", array);
  must(header.size() % 64 == 0);
  std::vector<std::byte> file(header.size() + array.bytes.size());
  std::memcpy(file.data(), header.data(), header.size());
  std::copy(array.bytes.begin(), array.bytes.end(),
            file.begin() + static_cast<std::ptrdiff_t>(header.size()));
  const NpyArray again = parse_npy("again", file);
  must(again.type == array.type && again.shape == array.shape);
  must(again.is_fortran == array.is_fortran && again.bytes == array.bytes);
}

}  // namespace

void fuzz_npy(const std::uint8_t* data, std::size_t num_bytes) {
  const auto file = std::as_bytes(std::span(data, num_bytes));
  try {
    if (num_bytes > 0 && data[0] == 'P') {
      for (const auto& [name, array] : parse_npz("fuzz", file)) {
        check_round_trip(array);
      }
    } else {
      check_round_trip(parse_npy("fuzz", file));
    }
  } catch (const ValueError&) {
    return;
  } catch (const DTypeError&) {
    return;
  } catch (const UnsupportedError&) {
    return;
  }
}

}  // namespace paperlab::io
