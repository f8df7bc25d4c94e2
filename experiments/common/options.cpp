#include "experiments/common/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <sstream>
#include <string_view>

#include "experiments/common/field_json.h"
#include "experiments/common/usage.h"
#include "paperlab/core/parallel.h"

namespace paperlab::experiments {
namespace {

constexpr double kGpuLimit_s = 480;  // one call on a borrowed GPU

/// "" if it is not set: empty and unset mean the same.
std::string environment(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? "" : text;
}

std::string folder_of(std::string paper) {
  std::replace(paper.begin(), paper.end(), '-', '_');
  return paper;
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) {
    check(!part.empty(), "--only", "ROW[,ROW...]", text);
    parts.push_back(part);
  }
  return parts;
}

/// CLI11's message, with the nearest option where one is unknown.
std::string explain(const CLI::ParseError& error, const CLI::App& app) {
  const auto* extras = dynamic_cast<const CLI::ExtrasError*>(&error);
  if (extras == nullptr || app.remaining().empty()) {
    return error.what();
  }
  std::vector<std::string> known;
  for (const CLI::Option* option : app.get_options()) {
    known.push_back("--" + option->get_lnames().front());
  }
  std::string word = app.remaining().front();
  word = word.substr(0, word.find('='));
  return "unknown argument " + brief(word) + suggestion(word, known);
}

/// The parts of "NAME=TEXT" words.
std::map<std::string, std::string> parse_pairs(const std::string& option, const char* required,
                                               const std::vector<std::string>& words) {
  std::map<std::string, std::string> pairs;
  for (const std::string& word : words) {
    const std::size_t equals = word.find('=');
    check(equals != std::string::npos && equals > 0, option, required, word);
    pairs[word.substr(0, equals)] = word.substr(equals + 1);
  }
  return pairs;
}

double parse_seconds(const std::string& text) {
  double seconds = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  const bool is_number = error == std::errc() && end == text.data() + text.size();
  check(is_number && std::isfinite(seconds) && seconds > 0, "--limit", "a number of seconds > 0",
        text);
  return seconds;
}

void check_word(const std::string& where, const std::string& word,
                const std::vector<std::string>& known) {
  if (std::find(known.begin(), known.end(), word) != known.end()) {
    return;
  }
  std::string list;
  for (const std::string& item : known) {
    list += (list.empty() ? "" : "|") + item;
  }
  throw UsageError(where + " must be " + list + ", got " + brief(word) + suggestion(word, known));
}

std::string help_text(const CLI::App& app, const std::vector<Field>& fields) {
  constexpr std::size_t kWidth = 98;
  return app.help() + "\nSettings (config.json and --set) and their defaults:\n" +
         describe_fields(fields, kWidth) + "\n";
}

}  // namespace

Options parse_options(int argc, const char* const* argv, const std::string& paper,
                      const std::vector<Field>& fields) {
  Options options;
  options.config_file = "experiments/" + folder_of(paper) + "/config.json";
  std::string only;
  std::string limit;
  std::string resume = "auto";
  std::vector<std::string> corpora;
  std::vector<std::string> missing_corpora;
  bool wants_help = false;

  CLI::App app("Runs the experiments of the paper.", paper);
  app.set_help_flag();
  app.add_flag("--help", wants_help, "Print this and exit");
  const auto add = [&app](const char* name, std::string& value, const char* type,
                          const char* meaning) {
    app.add_option(name, value, meaning)->type_name(type)->take_last();
  };
  add("--config", options.config_file, "FILE", "Configuration of the paper");
  add("--preset", options.preset, "NAME", "smoke, small (default), full or gpu");
  add("--out", options.out, "DIR", "Folder of the results (default: results)");
  add("--only", only, "ROW,...", "Run these rows alone");
  add("--override", options.override_file, "FILE", "File of config.json's shape to put on top");
  app.add_option("--set", options.assignments, "Set one setting; can be repeated")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  add("--resume", resume, "WHEN", "auto (default): go on from what is there; never: start anew");
  add("--limit", limit, "SECONDS", "Stop before a row that would end later");
  app.add_option("--corpus", corpora,
                 "What rows read: tokens, pictures, a product; can be repeated")
      ->type_name("NAME=FOLDER")
      ->allow_extra_args(false);
  app.add_option("--no-corpus", missing_corpora, "What could not be had")
      ->type_name("NAME=REASON")
      ->allow_extra_args(false);
  app.add_flag("--list-corpora", options.lists_corpora, "Print what rows would read");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    throw UsageError(explain(error, app));
  }
  if (wants_help) {
    options.help = help_text(app, fields);
    return options;
  }
  check_word("--preset", options.preset, {"smoke", "small", "full", "gpu"});
  check_word("--resume", resume, {"auto", "never"});
  check(!options.config_file.empty(), "--config", "a file", options.config_file);
  check(!options.out.empty(), "--out", "a folder", options.out);
  options.resumes = resume == "auto";
  options.only = split(only);
  options.corpora = parse_pairs("--corpus", "NAME=FOLDER", corpora);
  options.missing_corpora = parse_pairs("--no-corpus", "NAME=REASON", missing_corpora);
  if (!limit.empty()) {
    options.limit_s = parse_seconds(limit);
  } else if (options.preset == "gpu") {
    options.limit_s = kGpuLimit_s;
  }
  return options;
}

int requested_num_threads() {
  constexpr int kMost = 1024;
  if (const std::string text = environment("PAPERLAB_NUM_THREADS"); !text.empty()) {
    int count = 0;
    const std::string_view digits(text);
    const auto [end, error] = std::from_chars(digits.begin(), digits.end(), count);
    const bool is_integer = error == std::errc() && end == digits.end();
    check(is_integer && count >= 1 && count <= kMost, "PAPERLAB_NUM_THREADS",
          "an integer in 1.." + std::to_string(kMost), text);
    return count;
  }
  return get_num_threads();
}

std::string requested_cpu_isa() {
  std::string text = environment("PAPERLAB_CPU");
  if (text.empty()) {
    return "auto";
  }
  check_word("PAPERLAB_CPU", text, {"generic", "avx2", "avx512", "auto"});
  return text;
}

}  // namespace paperlab::experiments
