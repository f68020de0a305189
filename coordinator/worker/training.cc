#include "coordinator/worker/training.h"

#include <chrono>
#include <cmath>

namespace retort {
namespace {

namespace fs = std::filesystem;
using Time = std::chrono::steady_clock;

double since(Time::time_point then) { return std::chrono::duration<double>(Time::now() - then).count(); }

/// The loss on the held-out data; the weights with the least are kept, unless they are worse by `risen` nats
/// than no training should make them.
Result<void> look(RunFolder& folder, Progress& progress, const Network& network, const Training& training,
                  double risen) {
  const double loss = RETORT_TRY(training.held_out_loss());
  RunState& state = folder.state;
  const bool better =
      std::isfinite(loss) && !RunawayLoss::gone(risen) && (state.best.empty() || loss < state.best_loss);
  progress.emit("held_out", {{"pass", training.pass.name},
                             {"pass_index", training.index},
                             {"step", state.step},
                             {"loss", loss},
                             {"best", better}});
  state.looked = state.step + 1;
  if (!better) {
    ++state.waited;
    return {};
  }
  return folder.save_best(network, loss, risen);
}

}  // namespace

Result<void> train(RunFolder& folder, Progress& progress, Network& network, Moments& moments,
                   const Training& training) {
  const OptimisePass& pass = training.pass;
  RunState& state = folder.state;
  std::uint64_t steps = state.steps != 0 ? state.steps : training.steps;
  const auto stopped = [&](const std::string& why, const char* what_to_do) {
    return fail(ErrorCode::kInvalid, training.where, "{}: {}; {}{}", pass.name, why, what_to_do,
                state.checkpoint.empty() ? "; no checkpoint was written yet"
                                         : ". " + state.checkpoint + " holds the last good weights");
  };
  const std::uint64_t batches = RunawayLoss::batches(training.per_step, training.steps);
  // Computed once for the weights of a step.
  auto asked = [&, now = RunawayLoss::Asked{}, at = UINT64_MAX]() mutable -> const RunawayLoss::Asked& {
    if (at == state.step) return now;
    torch::NoGradGuard no_grad;
    now = {}, at = state.step;
    for (std::uint64_t step = 0; step < batches; ++step) {
      const double loss = training.loss(step);
      now.loss += loss / static_cast<double>(batches);
      now.nll += (training.nll ? training.nll(step) : loss) / static_cast<double>(batches);
    }
    return now;
  };
  const auto run_away = [&](const char* when, double risen) {
    return stopped(
        fmt::format("{} step {} the loss has run away: {:.4g} nats per {}, and it was {:.4g}", when,
                    state.step, state.loss.least.nll + risen, training.each, state.loss.least.nll),
        "lower learning_rate, or give larger batches");
  };
  if (state.loss.next == 0) {
    if (!std::isfinite(asked().loss) || !std::isfinite(asked().nll))
      return stopped("the loss is not a number before any step was taken",
                     "look at the model's weights and the data");
    state.loss.add(0, asked(), batches);
  }
  const auto save_good = [&]() -> Result<void> {
    if (!(state.loss.risen(asked()) <= RunawayLoss::kRising)) return {};
    return folder.save(network, moments);
  };
  Time::time_point saved = Time::now(), told = {}, mark = Time::now();
  std::uint64_t mark_step = state.step;
  double rate = 0;
  std::error_code ignored;
  for (;;) {
    Result<void> going = folder.check_stop();
    const bool due = pass.evaluate_every != 0 && state.looked != state.step + 1 &&
                     (state.step == steps || state.step % pass.evaluate_every == 0);
    if (going && due) going = look(folder, progress, network, training, state.loss.risen(asked()));
    if (!going) {
      if (going.error().code == ErrorCode::kCancelled) RETORT_TRY(save_good());
      return going;
    }
    if (state.step >= steps || (pass.patience != 0 && state.waited >= pass.patience)) break;
    if (pass.schedule == OptimisePass::Schedule::kWsd && state.steps == 0 &&
        fs::exists(folder / "finish", ignored)) {
      const auto fall = static_cast<std::uint64_t>(pass.decay / (1 - std::min(pass.decay, 0.9)) *
                                                   static_cast<double>(state.step));
      steps = state.steps = std::min(steps, state.step + std::max<std::uint64_t>(1, fall));
      RETORT_TRY(save_good());
    }
    begin_step(network);
    const StepReport report =
        finish_step(network, moments, pass, training.loss(state.step), state.step, steps);
    if (!std::isfinite(report.loss))
      return stopped(fmt::format("at step {} the loss or its gradient is not a number{}", state.step,
                                 state.step == 0 ? "" : " any more"),
                     state.step == 0 ? "no step was taken yet: look at the model's weights and the data"
                                     : "lower learning_rate");
    ++state.step;
    const bool first = state.step == mark_step + 1 && rate == 0, last = state.step == steps;
    if (state.step >= state.loss.next && !last) {
      if (const double risen = state.loss.risen(asked()); RunawayLoss::gone(risen))
        return run_away("at", risen);
      state.loss.add(state.step, asked(), batches);
    }
    if (since(mark) > 2 || first || last) {
      rate = static_cast<double>((state.step - mark_step) * training.per_step) / std::max(1e-9, since(mark));
      if (!first) mark = Time::now(), mark_step = state.step;
    }
    if (first || last || since(told) >= 1) {
      told = Time::now();
      progress.emit("progress",
                    {{"pass", pass.name},
                     {"pass_index", training.index},
                     {"pass_count", training.passes},
                     {"step", state.step},
                     {"steps", steps},
                     {"counts", std::string(training.each) + "s"},
                     {"tokens", state.step * training.per_step},
                     {"token_budget", steps * training.per_step},
                     {"loss", report.loss},
                     {"learning_rate", report.learning_rate},
                     {"tokens_per_second", rate},
                     {"seconds_left", static_cast<double>((steps - state.step) * training.per_step) / rate}});
    }
    if (!last && since(saved) >= pass.checkpoint_seconds) {
      RETORT_TRY(save_good());
      saved = Time::now();
    }
  }
  const bool earlier = !state.best.empty() && state.best_step != state.step;
  const double risen = earlier && state.best_step != 0 ? state.best_risen : state.loss.risen(asked());
  if (RunawayLoss::gone(risen)) return run_away("after", risen);
  const auto warn = [&](double from, double to, const char* hint) {
    progress.warning(fmt::format("{}: the loss ended at {:.4g} nats per {}, and it was {:.4g}: {}", pass.name,
                                 to, training.each, from, hint));
  };
  if (earlier && state.best_step == 0)
    progress.warning(
        fmt::format("{}: no look at the held-out data found less loss than that of the weights that "
                    "the pass began with: it ends with these. Lower learning_rate, or give more to "
                    "learn from",
                    pass.name));
  else if (risen > RunawayLoss::kRising)
    warn(state.loss.least.nll, state.loss.least.nll + risen, "lower learning_rate, or give larger batches");
  else if (!earlier && asked().nll > state.loss.lowest_nll + RunawayLoss::kRising)
    warn(state.loss.lowest_nll, asked().nll,
         "what this pass learns takes from what the model knew; give labels or soft targets some weight, "
         "or let a pass with them follow");
  for (auto& [name, tensor] : network.weights) tensor = tensor.detach();
  drop_projections(network);
  if (!state.best.empty()) {
    if (earlier) RETORT_TRY(folder.restore_best(network));
    progress.emit("best", {{"pass_index", training.index},
                           {"step", state.best_step},
                           {"stopped_at", state.step},
                           {"loss", state.best_loss}});
  }
  fs::remove(folder / "finish", ignored);
  return {};
}

}  // namespace retort
