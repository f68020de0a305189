#include "coordinator/worker/training.h"

#include <chrono>
#include <cmath>

namespace retort {
namespace {

namespace fs = std::filesystem;
using Time = std::chrono::steady_clock;

double since(Time::time_point then) { return std::chrono::duration<double>(Time::now() - then).count(); }

/// The loss on the held-out data; the weights with the least are kept, unless they have run away by `risen`.
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
  const auto now = [&](std::uint64_t step) {
    torch::NoGradGuard no_grad;
    return training.loss(step);
  };
  const auto run_away = [&](const char* when) {
    return stopped(fmt::format("{} step {} the loss has run away, to {:.4g} from {:.4g} on the same {} {}",
                               when, state.step, state.loss.least + state.loss.risen(now), state.loss.least,
                               state.loss.span * training.per_step, training.what),
                   "lower learning_rate, or give larger batches");
  };
  if (state.loss.span == 0) state.loss.begin(training.per_step, steps, now);
  if (!std::isfinite(state.loss.least))
    return stopped("the loss is not a number before any step was taken",
                   "look at the model's weights and the data");
  const auto good = [&] { return state.loss.risen(now) <= RunawayLoss::kRising; };
  Time::time_point saved = Time::now(), told = {}, mark = Time::now();
  std::uint64_t mark_step = state.step;
  double rate = 0;
  std::error_code ignored;
  while (state.step < steps && !(pass.patience != 0 && state.waited >= pass.patience)) {
    if (const auto stop = folder.check_stop(); !stop) {
      if (good()) RETORT_TRY(folder.save(network, moments));
      return fail(stop.error());
    }
    if (pass.schedule == OptimisePass::Schedule::kWsd && state.steps == 0 &&
        fs::exists(folder / "finish", ignored)) {
      const auto fall = static_cast<std::uint64_t>(pass.decay / (1 - std::min(pass.decay, 0.9)) *
                                                   static_cast<double>(state.step));
      steps = state.steps = std::min(steps, state.step + std::max<std::uint64_t>(1, fall));
      if (good()) RETORT_TRY(folder.save(network, moments));
    }
    begin_step(network);
    const StepReport report =
        finish_step(network, moments, pass, training.loss(state.step), state.step, steps);
    if (!std::isfinite(report.loss))
      return stopped(fmt::format("at step {} the loss or its gradient is not a number{}", state.step,
                                 state.step == 0 ? "" : " any more"),
                     state.step == 0 ? "no step was taken yet: look at the model's weights and the data"
                                     : "lower learning_rate");
    state.loss.add(state.step, report.loss);
    if (state.loss.gone_at(state.step, now)) return run_away("at");
    ++state.step;
    const bool first = state.step == mark_step + 1 && rate == 0, last = state.step == steps;
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
                     {"counts", training.what},
                     {"tokens", state.step * training.per_step},
                     {"token_budget", steps * training.per_step},
                     {"loss", report.loss},
                     {"learning_rate", report.learning_rate},
                     {"tokens_per_second", rate},
                     {"seconds_left", static_cast<double>((steps - state.step) * training.per_step) / rate}});
    }
    if (pass.evaluate_every != 0 && (last || state.step % pass.evaluate_every == 0))
      RETORT_TRY(look(folder, progress, network, training, state.loss.risen(now)));
    if (!last && since(saved) >= pass.checkpoint_seconds) {
      if (good()) RETORT_TRY(folder.save(network, moments));
      saved = Time::now();
    }
  }
  const bool earlier_weights = !state.best.empty() && state.best_step != state.step;
  const double risen = earlier_weights ? state.best_risen : state.loss.risen(now);
  if (RunawayLoss::gone(risen)) return run_away("after");
  if (risen > RunawayLoss::kRising)
    progress.warning(
        fmt::format("{}: the loss {} {:.2g} above the least that it was, on the same {} {}: "
                    "lower learning_rate, or give larger batches",
                    pass.name, earlier_weights ? "of the best weights is" : "ended", risen,
                    state.loss.span * training.per_step, training.what));
  for (auto& [name, tensor] : network.weights) tensor = tensor.detach();
  drop_projections(network);
  if (!state.best.empty()) {
    if (earlier_weights) RETORT_TRY(folder.restore_best(network));
    progress.emit("best", {{"pass_index", training.index},
                           {"step", state.best_step},
                           {"stopped_at", state.step},
                           {"loss", state.best_loss}});
  }
  fs::remove(folder / "finish", ignored);
  return {};
}

}  // namespace retort
