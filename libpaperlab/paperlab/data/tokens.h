#pragma once
/// \file
/// Tokenised text on disk: a folder with manifest.json and, for each domain and split,
///
///     DOMAIN/SPLIT.npy            uint8, uint16 or uint32 [N]: the documents' tokens back to back
///     DOMAIN/SPLIT_documents.npy  uint64 [D + 1]: document i is tokens offsets[i] .. offsets[i +
///     1]
///
/// Marks (a separator after each document, another before it) are tokens of the document.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/core/json.h"
#include "paperlab/io/file.h"
#include "paperlab/io/npy.h"

namespace paperlab::data {

/// The tokens of one domain and split, memory-mapped. Safe to use from several threads.
class PAPERLAB_API TokenFile {
 public:
  /// Reads both headers and the offsets; tokens are read when they are copied.
  /// \param vocab_size  1..2^32; tokens must be below it.
  /// \throws IoError     if a file cannot be read.
  /// \throws ValueError  "FILE: reason" if one is malformed or truncated, or if the offsets do not
  ///                     go from 0 to the number of tokens in order.
  /// \throws DTypeError  if the elements are of other types than those above.
  TokenFile(const std::string& tokens_path, const std::string& offsets_path,
            std::int64_t vocab_size);

  const std::string& path() const { return path_; }  ///< of the tokens
  io::ElementType type() const { return view_.type; }
  std::int64_t vocab_size() const { return vocab_size_; }
  std::int64_t num_tokens() const { return view_.shape[0]; }
  std::int64_t num_documents() const { return static_cast<std::int64_t>(offsets_.size()) - 1; }
  std::span<const std::int64_t> offsets() const { return offsets_; }  ///< [num_documents + 1]

  /// Copies tokens begin .. begin + out.size().
  /// \throws ValueError  if they are not all there, or if one is vocab_size or more: "FILE: token
  ///                     at ... is ..., the vocabulary has ..."; `out` then holds some of them.
  void copy(std::int64_t begin, std::span<std::int64_t> out) const;

 private:
  [[noreturn]] void throw_first_beyond(std::int64_t begin, std::span<const std::int64_t> out) const;

  std::string path_;
  std::int64_t vocab_size_;
  std::shared_ptr<io::Mapping> mapping_;
  io::NpyView view_;  // into the mapping
  std::vector<std::int64_t> offsets_;
};

/// What the manifest says of one domain and split.
struct SplitCount {
  std::int64_t documents = 0;
  std::int64_t tokens = 0;
  std::int64_t bytes = 0;  ///< of the text
};

/// A folder of such files.
class PAPERLAB_API TokenFolder {
 public:
  /// Reads the manifest.
  /// \throws IoError     if it cannot be read.
  /// \throws ValueError  "FOLDER/manifest.json: reason" if it is malformed or of another format.
  explicit TokenFolder(std::string folder);

  const std::string& folder() const { return folder_; }
  const Json& manifest() const { return manifest_; }
  std::int64_t vocab_size() const { return vocab_size_; }

  /// In the order of the recipe.
  const std::vector<std::string>& domains() const { return domains_; }

  /// \throws ValueError  if there is no such domain or split; the message lists those there are.
  const SplitCount& count(const std::string& domain, const std::string& split) const;

  /// Opens the tokens of a domain and split.
  /// \throws ValueError  if the manifest says other than the files do; errors of TokenFile too.
  std::shared_ptr<const TokenFile> open(const std::string& domain, const std::string& split) const;

 private:
  void read_manifest();
  void read_domain(const Json& domain);

  std::string folder_;
  Json manifest_;
  std::int64_t vocab_size_ = 0;
  io::ElementType type_ = io::ElementType::kU16;
  std::vector<std::string> domains_;
  std::map<std::string, std::map<std::string, SplitCount>> counts_;  // domain -> split
};

/// Tokens around each document.
struct Marks {
  std::optional<std::uint32_t> before{};
  std::optional<std::uint32_t> after{};
};

/// Copies documents of bytes as tokens, marks included.
/// \param offsets  [D + 1], in order, at most text.size(): document i is text offsets[i] ..
///                 offsets[i + 1]; what lies outside of them is left out.
/// \param tokens   [offsets[D] - offsets[0] + D * number of marks]; uint8_t or uint16_t.
/// \throws ValueError, ShapeError  if offsets, sizes or marks do not fit.
template <class T>
PAPERLAB_API void byte_tokens(std::span<const std::uint8_t> text,
                              std::span<const std::uint64_t> offsets, const Marks& marks,
                              std::span<T> tokens);

}  // namespace paperlab::data
