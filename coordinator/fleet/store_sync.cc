#include "coordinator/fleet/store_sync.h"

#include <boost/asio/post.hpp>
#include <utility>

#include "common/core/log.h"

namespace retort {

void StoreSync::then(std::function<void()> call) {
  waiting_.push_back(std::move(call));
  if (!busy_) start();
}

void StoreSync::start() {
  busy_ = true;
  auto calls = std::make_shared<std::vector<std::function<void()>>>(std::exchange(waiting_, {}));
  boost::asio::post(thread_, [this, calls, alive = std::weak_ptr<int>(alive_)] {
    auto done = std::make_shared<Result<void>>(store_.sync());
    boost::asio::post(reactor_, [this, calls, alive, done] {
      if (alive.expired()) return;
      if (!*done) log_error("store: {}", done->error().describe());
      for (const auto& call : *calls)
        if (*done) call();
      busy_ = false;
      if (!waiting_.empty()) start();
    });
  });
}

}  // namespace retort
