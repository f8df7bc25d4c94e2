#pragma once
/// \file
/// A folder for one test, and small files in it.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace paperlab::experiments {

/// Runs `statement` and checks that it throws `type` with a message that contains `part`.
#define PAPERLAB_EXPECT_THROW(statement, type, part)                                    \
  try {                                                                                 \
    statement;                                                                          \
    ADD_FAILURE() << "nothing was thrown; expected " << (part);                         \
  } catch (const type& error) {                                                         \
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what(); \
  }

/// An empty folder that is removed with the object.
class Scratch {
 public:
  Scratch() : path_(testing::TempDir() + "paperlab-XXXXXX") {
    if (mkdtemp(path_.data()) == nullptr) {
      ADD_FAILURE() << "no temporary folder";
    }
  }
  ~Scratch() { std::filesystem::remove_all(path_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

  std::string write(const std::string& name, const std::string& text) const {
    const std::filesystem::path file = path_ + "/" + name;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
    return file.string();
  }

  std::string read(const std::string& name) const {
    std::ifstream file(path_ + "/" + name);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  bool has(const std::string& name) const { return std::filesystem::exists(path_ + "/" + name); }

 private:
  std::string path_;
};

}  // namespace paperlab::experiments
