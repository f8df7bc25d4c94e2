// npz_copy IN OUT: the arrays of one .npz file (or the array of one .npy file) into another.
#include <cstdio>
#include <exception>
#include <string>

#include "paperlab/io/npy.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    return 2;
  }
  try {
    const std::string in = argv[1];
    if (in.ends_with(".npz")) {
      paperlab::io::write_npz(argv[2], paperlab::io::read_npz(in));
    } else {
      paperlab::io::write_npy(argv[2], paperlab::io::read_npy(in));
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
