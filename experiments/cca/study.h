#pragma once
// Independent tasks, side by side on one thread each and kept one by one; and studies, where some
// tasks go on from what a base task has trained.

#include <ATen/core/Tensor.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "experiments/common/run.h"

namespace paperlab::experiments::cca {

using Columns = std::vector<std::pair<std::string, std::vector<double>>>;

// 1, 2, ..., count: the column "row" of a table.
std::vector<double> row_numbers(std::size_t count);

// What a task records; names are without the task's.
struct Outcome {
  std::vector<std::pair<std::string, double>> scalars;
  std::vector<std::pair<std::string, Columns>> series;
};

// Counts a step of a task.
using OnStep = std::function<void()>;

struct Task {
  std::string name;
  std::int64_t num_steps = 0;  // that it counts
  std::function<Outcome(const OnStep& on_step)> run;
};

class Tasks {
 public:
  explicit Tasks(Run& run) : run_(run) {}

  bool is_done(const std::string& task) const;

  // Steps that the progress counts; run() has to follow.
  void plan(const std::vector<Task>& tasks);

  // Runs all and records those that are not done as "<task>: <what>".
  void run(const std::vector<Task>& tasks);

 private:
  void record(const Task& task, const Outcome& outcome);

  Run& run_;
  std::int64_t num_planned_ = 0;
  std::atomic<std::int64_t> num_done_ = 0;
};

// The tasks that are not done.
void complete(Run& run, const std::vector<Task>& tasks);

using Tensors = std::vector<at::Tensor>;

struct Base {
  std::int64_t num_steps = 0;
  std::function<Tensors(std::uint64_t seed, const OnStep& on_step, Outcome& outcome)> train;
};

// Goes on from a base's tensors, which it must not change.
struct Fork {
  std::string name;
  std::int64_t num_steps = 0;
  std::function<Outcome(std::uint64_t seed, const Tensors& base, const OnStep& on_step)> run;
};

// Records forks as "<study> seed <s> <fork>: <what>", and bases by the name "base". A base is
// trained only if it or a fork of it is missing.
class Study {
 public:
  Study(Run& run, std::string name) : run_(run), name_(std::move(name)) {}

  void complete(const std::vector<std::uint64_t>& seeds, const Base& base,
                const std::vector<Fork>& forks);

  // Over the seeds.
  double mean(const std::vector<std::uint64_t>& seeds, const std::string& fork,
              const std::string& what) const;

 private:
  std::string task_name(std::uint64_t seed, const std::string& fork) const;

  Run& run_;
  std::string name_;
};

}  // namespace paperlab::experiments::cca
