#pragma once
// Independent tasks, kept one by one; and studies, where some tasks go on from what a base task has
// trained. Tasks run side by side on one thread each, or (step_s > 0, see Config) one after
// another.

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
  Tasks(Run& run, double step_s) : run_(run), step_s_(step_s) {}

  bool is_done(const std::string& task) const;

  // Steps that the progress counts; run() has to follow.
  void plan(const std::vector<Task>& tasks);

  bool are_side_by_side() const { return step_s_ == 0.0; }

  // Runs all, side by side or one after another within the limit, and records those that are not
  // done as "<task>: <what>".
  void run(const std::vector<Task>& tasks);

  // One after another: the first task, and those that fit into the call's limit. `least` of them
  // are run whatever the limit says once the first has begun, which may begin if they all fit.
  void run_within_limit(const std::vector<Task>& tasks, std::size_t least);

 private:
  void record(const Task& task, const Outcome& outcome);
  void run_here(const Task& task);

  Run& run_;
  double step_s_;  // the longest that was measured, but at least the setting's
  std::int64_t num_planned_ = 0;
  std::atomic<std::int64_t> num_done_ = 0;
};

// The tasks that are not done.
void complete(Run& run, double step_s, const std::vector<Task>& tasks);

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
  Study(Run& run, std::string name, double step_s)
      : run_(run), name_(std::move(name)), step_s_(step_s) {}

  void complete(const std::vector<std::uint64_t>& seeds, const Base& base,
                const std::vector<Fork>& forks);

  // Over the seeds.
  double mean(const std::vector<std::uint64_t>& seeds, const std::string& fork,
              const std::string& what) const;

 private:
  std::string task_name(std::uint64_t seed, const std::string& fork) const;

  Run& run_;
  std::string name_;
  double step_s_;
};

}  // namespace paperlab::experiments::cca
