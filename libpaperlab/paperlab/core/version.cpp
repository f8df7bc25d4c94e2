#include "paperlab/core/version.h"

#include <elf.h>
#include <link.h>

#include <cstdint>
#include <cstring>
#include <string_view>

#include "version_generated.h"

namespace paperlab {
namespace {

// The build id among the notes of one segment, in hexadecimal; "" if there is none.
std::string build_id(const char* notes, std::size_t size) {
  constexpr char kHex[] = "0123456789abcdef";
  const auto padded = [](std::size_t n) { return (n + 3) / 4 * 4; };
  for (std::size_t at = 0; at + sizeof(ElfW(Nhdr)) <= size;) {
    ElfW(Nhdr) note;
    std::memcpy(&note, notes + at, sizeof(note));
    const char* name = notes + at + sizeof(note);
    const char* value = name + padded(note.n_namesz);
    if (note.n_type == NT_GNU_BUILD_ID && std::string_view(name, 3) == "GNU") {
      std::string hex;
      for (std::size_t i = 0; i < note.n_descsz; ++i) {
        const auto byte = static_cast<unsigned char>(value[i]);
        hex += kHex[byte >> 4U];
        hex += kHex[byte & 15U];
      }
      return hex;
    }
    at += sizeof(note) + padded(note.n_namesz) + padded(note.n_descsz);
  }
  return "";
}

// Appends the ids of the main program (its name is empty) and of libpaperlab.so.
int append_id(dl_phdr_info* object, std::size_t, void* out) {
  const std::string_view name = object->dlpi_name;
  if (!name.empty() && name.find("libpaperlab.so") == std::string_view::npos) {
    return 0;
  }
  for (int i = 0; i < object->dlpi_phnum; ++i) {
    const ElfW(Phdr) & segment = object->dlpi_phdr[i];
    if (segment.p_type != PT_NOTE) {
      continue;
    }
    // The loader gives addresses as numbers.
    const auto* notes = reinterpret_cast<const char*>(  // NOLINT(performance-no-int-to-ptr)
        object->dlpi_addr + segment.p_vaddr);
    const std::string id = build_id(notes, segment.p_memsz);
    if (!id.empty()) {
      std::string& all = *static_cast<std::string*>(out);
      all += (all.empty() ? "" : "+") + id;
      return 0;
    }
  }
  return 0;
}

}  // namespace

std::string program_id() {
  std::string id;
  dl_iterate_phdr(append_id, &id);
  return id;
}

const BuildInfo& build_info() {
  static const BuildInfo info{PAPERLAB_VERSION, PAPERLAB_COMMIT,        PAPERLAB_COMPILER,
                              PAPERLAB_FLAGS,   PAPERLAB_TORCH_VERSION, PAPERLAB_CUDA_VERSION};
  return info;
}

}  // namespace paperlab
