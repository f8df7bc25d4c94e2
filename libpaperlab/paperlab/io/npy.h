#pragma once
/// \file
/// NumPy files: .npy (formats 1 to 3) and .npz, a zip archive of them. Little-endian bool, integer,
/// float and complex64 arrays; archives with stored members, as numpy.savez writes them.
/// Source: NumPy's format description NEP 1; PKWARE's APPNOTE for zip.

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/io/element_type.h"

namespace paperlab::io {

/// An array with its own memory. No packed type, no BF16 and no F8 have a NumPy name.
struct NpyArray {
  ElementType type = ElementType::kF64;
  std::vector<std::int64_t> shape;
  bool is_fortran = false;       ///< the first index runs fastest, not the last
  std::vector<std::byte> bytes;  ///< in that order
};

/// An array in somebody else's memory.
struct NpyView {
  ElementType type = ElementType::kF64;
  std::vector<std::int64_t> shape;
  bool is_fortran = false;
  std::span<const std::byte> bytes;  ///< at any address: formats do not promise an alignment
};

/// The elements in row-major order, whatever order the array has.
PAPERLAB_API NpyArray row_major(const NpyArray& array);

/// Returns where the array lies in the bytes of a .npy file, for files that are mapped.
/// \param source  the file's name, for messages.
/// \throws ValueError  "SOURCE: reason" if it is malformed, truncated or longer than its array.
/// \throws DTypeError  if the elements are of another type (big endian, object, string, ...).
PAPERLAB_API NpyView view_npy(const std::string& source, std::span<const std::byte> file);

/// A copy of that array; errors as of view_npy().
PAPERLAB_API NpyArray parse_npy(const std::string& source, std::span<const std::byte> file);

/// Returns the arrays in the bytes of a .npz file, without `.npy` in their names.
/// \throws ValueError        "SOURCE: reason" if the archive is malformed, a checksum is wrong, or
/// a
///                           name comes twice.
/// \throws UnsupportedError  if a member is compressed or encrypted.
PAPERLAB_API std::map<std::string, NpyArray> parse_npz(const std::string& source,
                                                       std::span<const std::byte> file);

/// The array in the file `path`.
/// \throws IoError  if it cannot be read; errors of parse_npy() too.
PAPERLAB_API NpyArray read_npy(const std::string& path);

/// The arrays in the file `path`; errors as of read_npy() and parse_npz().
PAPERLAB_API std::map<std::string, NpyArray> read_npz(const std::string& path);

/// Writes through `path`.tmp and rename.
/// \throws ValueError  if the bytes do not fit type and shape.
/// \throws DTypeError  if NumPy has no such type.
/// \throws IoError     if the system refuses.
PAPERLAB_API void write_npy(const std::string& path, const NpyArray& array);

/// Writes an archive of stored members in the order of names, with data at multiples of 64; equal
/// arrays give equal bytes. Errors as of write_npy(); a ValueError too for a name that is empty,
/// and for arrays of 4 GiB or more in all.
PAPERLAB_API void write_npz(const std::string& path, const std::map<std::string, NpyArray>& arrays);

}  // namespace paperlab::io
