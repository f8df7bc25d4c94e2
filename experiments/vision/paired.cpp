// Both sides of the same training: what they differ by.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>

#include "experiments/common/side_by_side.h"
#include "experiments/vision/training.h"
#include "paperlab/core/error.h"
#include "paperlab/ops/device.h"

namespace paperlab::experiments::vision {
namespace {

double largest(const std::vector<double>& values) {
  return values.empty() ? 0.0 : *std::max_element(values.begin(), values.end());
}

double mean(const std::vector<double>& values) {
  double sum = 0.0;
  for (const double value : values) {
    sum += value;
  }
  return sum / static_cast<double>(values.size());
}

// |a - b| by element, as far as both go.
std::vector<double> distances(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> result(std::min(a.size(), b.size()));
  for (std::size_t i = 0; i < result.size(); ++i) {
    result[i] = std::abs(a[i] - b[i]);
  }
  return result;
}

void raise_to(std::vector<double>& values, const std::vector<double>& others) {
  values.resize(std::max(values.size(), others.size()));
  for (std::size_t i = 0; i < others.size(); ++i) {
    values[i] = std::max(values[i], others[i]);
  }
}

std::vector<double> counted(std::size_t count) {
  std::vector<double> numbers(count);
  for (std::size_t i = 0; i < count; ++i) {
    numbers[i] = static_cast<double>(i + 1);
  }
  return numbers;
}

// The largest difference of the logits by the largest of theirs, of the weights that they trained.
double logit_difference(const Outcome& outcome, const Peer& peer) {
  const at::Tensor theirs = peer.logits.to(at::kDouble);
  const at::Tensor difference = (outcome.of_peer.to(at::kDouble) - theirs).abs();
  return difference.max().item<double>() / theirs.abs().max().item<double>();
}

// A job's two sides.
struct Pair {
  Peer peer;
  Outcome ours;
};

// Trains all jobs: side by side on a CPU, one thread each.
std::vector<Pair> train_all(const Config& config, Run& run, const std::vector<Job>& jobs,
                            const Pictures& pictures, const Folders& folders) {
  std::vector<Pair> pairs(jobs.size());
  std::int64_t total = 0;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    pairs[i].peer = open_peer(folders[i + 1]);
    total += pairs[i].peer.rows.size(0);
  }
  std::atomic<std::int64_t> done = 0;
  const int num_threads = config.device == "cpu" ? run.num_threads() : 1;
  run_side_by_side(num_threads, jobs.size(),
                   [&](std::size_t i) {
                     pairs[i].ours =
                         train(config, jobs[i], pictures, pairs[i].peer, [&done] { ++done; });
                   },
                   {[](std::size_t) {}, [&] { run.progress(done, total); }});
  return pairs;
}

// Means over seeds, and over every `record_every` steps.
void record_curves(const Config& config, Run& run, const std::string& name,
                   const std::vector<Pair>& pairs) {
  const std::size_t steps = pairs.front().ours.curves.loss.size();
  const auto every = static_cast<std::size_t>(config.record_every);
  std::vector<double> step;
  std::vector<double> ours;
  std::vector<double> theirs;
  std::vector<double> difference;
  for (std::size_t begin = 0; begin < steps; begin += every) {
    const std::size_t end = std::min(begin + every, steps);
    const double count = static_cast<double>((end - begin) * pairs.size());
    step.push_back(static_cast<double>(end));
    double our_sum = 0.0;
    double their_sum = 0.0;
    double most = 0.0;
    for (const Pair& pair : pairs) {
      for (std::size_t i = begin; i < end; ++i) {
        our_sum += pair.ours.curves.loss[i];
        their_sum += pair.peer.curves.loss[i];
        most = std::max(most, std::abs(pair.ours.curves.loss[i] - pair.peer.curves.loss[i]));
      }
    }
    ours.push_back(our_sum / count);
    theirs.push_back(their_sum / count);
    difference.push_back(most);
  }
  run.series(name + ": loss", {{"step", step},
                               {"ours", ours},
                               {"transformers", theirs},
                               {"largest_difference", difference}});
}

void record_accuracy(Run& run, const std::string& name, const std::vector<Pair>& pairs) {
  const Curves& first = pairs.front().ours.curves;
  std::vector<double> ours(first.eval_step.size());
  std::vector<double> theirs(first.eval_step.size());
  for (const Pair& pair : pairs) {
    for (std::size_t i = 0; i < ours.size(); ++i) {
      ours[i] += pair.ours.curves.accuracy.at(i) / static_cast<double>(pairs.size());
      theirs[i] += pair.peer.curves.accuracy.at(i) / static_cast<double>(pairs.size());
    }
  }
  run.series(name + ": accuracy",
             {{"step", first.eval_step}, {"ours", ours}, {"transformers", theirs}});
}

// Differences of the loss, and those of transformers from itself where it starts from moved
// weights: largest over seeds. Returns the ratio of their largest values in the first steps.
double record_moved(const Config& config, Run& run, const std::string& name,
                    const std::vector<Pair>& pairs) {
  std::vector<double> difference;
  std::vector<double> moved;
  for (const Pair& pair : pairs) {
    raise_to(difference, distances(pair.ours.curves.loss, pair.peer.curves.loss));
    raise_to(moved, distances(pair.peer.moved_loss, pair.peer.curves.loss));
  }
  difference.resize(moved.size());
  run.series(name + ": moved weights",
             {{"step", counted(moved.size())}, {"difference", difference}, {"moved", moved}});
  const auto first = std::min(moved.size(), static_cast<std::size_t>(config.first_steps));
  difference.resize(first);
  moved.resize(first);
  return largest(difference) / largest(moved);
}

// The mean paired difference and its standard error: that of the seeds, or that of as many pictures
// on which one side alone is right, if that is larger.
struct Difference {
  double mean = 0.0;
  double standard_error = 0.0;
};

Difference record_seeds(const Config& config, Run& run, const std::string& name,
                        const Pictures& pictures, const std::vector<Pair>& pairs) {
  std::vector<double> ours;
  std::vector<double> theirs;
  std::vector<double> differences;
  std::vector<double> disagreements;
  for (const Pair& pair : pairs) {
    const at::Tensor our_hits = hits(pair.ours.logits, pictures, pair.peer);
    const at::Tensor their_hits = hits(pair.peer.logits, pictures, pair.peer);
    ours.push_back(our_hits.to(at::kDouble).mean().item<double>());
    theirs.push_back(their_hits.to(at::kDouble).mean().item<double>());
    differences.push_back(ours.back() - theirs.back());
    disagreements.push_back(our_hits.ne(their_hits).sum().item<double>());
  }
  run.series(name + ": seeds", {{"seed", {config.seeds.begin(), config.seeds.end()}},
                                {"ours", ours},
                                {"transformers", theirs},
                                {"difference", differences},
                                {"disagreements", disagreements}});
  const auto num_seeds = static_cast<double>(pairs.size());
  const auto num_pictures = static_cast<double>(pairs.front().peer.test_rows.size(0));
  Difference result;
  result.mean = mean(differences);
  double squares = 0.0;
  for (const double difference : differences) {
    squares += (difference - result.mean) * (difference - result.mean);
  }
  const double of_seeds = num_seeds > 1 ? std::sqrt(squares / (num_seeds - 1) / num_seeds) : 0.0;
  const double of_pictures =
      std::sqrt(num_seeds * mean(disagreements)) / (num_seeds * num_pictures);
  result.standard_error = std::max(of_seeds, of_pictures);
  run.scalar(name + ": accuracy", mean(ours));
  run.scalar(name + ": accuracy of transformers", mean(theirs));
  run.scalar(name + ": difference", result.mean);
  run.scalar(name + ": standard error of the difference", result.standard_error);
  return result;
}

}  // namespace

void curve(const Config& config, Run& run, const Folders& folders) {
  const Pictures pictures = open_pictures(folders.front());
  const Job job = curve_job(config);
  const std::vector<Pair> pairs = train_all(config, run, {job}, pictures, folders);
  const Pair& pair = pairs.front();
  std::vector<double> relative = distances(pair.ours.curves.loss, pair.peer.curves.loss);
  for (std::size_t i = 0; i < relative.size(); ++i) {
    relative[i] /= std::abs(pair.peer.curves.loss[i]);
  }
  run.series("float64 curve",
             {{"step", counted(relative.size())}, {"relative_difference", relative}});
  record_moved(config, run, "float64 curve", pairs);
  run.claim("C1a", largest(relative));
  run.claim("C1b", logit_difference(pair.ours, pair.peer));
}

void paired(const Config& config, Run& run, const Recipe& recipe, const std::string& name,
            const Folders& folders) {
  const Pictures pictures = open_pictures(folders.front());
  const std::vector<Job> jobs = jobs_of(config, recipe, name);
  const std::vector<Pair> pairs = train_all(config, run, jobs, pictures, folders);
  record_curves(config, run, name, pairs);
  record_accuracy(run, name, pairs);
  const Difference difference = record_seeds(config, run, name, pictures, pairs);
  const double ratio = record_moved(config, run, name, pairs);
  double logits = 0.0;
  for (const Pair& pair : pairs) {
    logits = std::max(logits, logit_difference(pair.ours, pair.peer));
  }
  run.scalar(name + ": steps", static_cast<double>(pairs.front().peer.rows.size(0)));
  run.scalar(name + ": test pictures", static_cast<double>(pairs.front().peer.test_rows.size(0)));
  const std::string claim = name == "digits" ? "C2" : "C3";
  run.claim(claim + "a", difference.mean);
  run.claim(claim + "b", difference.mean + 2.0 * difference.standard_error);
  if (config.dtype == "float32") {  // in float64 both may be 0
    run.claim(claim + "c", ratio);
  }
  run.claim(claim + "d", logits);
  if (name == "fashion") {
    run.claim("C4", run.value_of("fashion: accuracy"));
  }
}

}  // namespace paperlab::experiments::vision
