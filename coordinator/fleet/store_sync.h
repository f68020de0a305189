#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/thread_pool.hpp>
#include <functional>
#include <memory>
#include <vector>

#include "common/store/store.h"

namespace retort {

/// Tells when what was written without waiting is on disk: one sync for all who ask while the last one is
/// under way, on a thread of its own, so that the reactor never waits for the disk. Thread: reactor.
class StoreSync {
 public:
  StoreSync(boost::asio::io_context& reactor, Store& store) : reactor_(reactor), store_(store) {}
  /// Calls `call` when all that is written by now is on disk; never, where it cannot be: nobody is promised
  /// anything then, and whoever waits asks again.
  void then(std::function<void()> call);

 private:
  void start();
  boost::asio::io_context& reactor_;
  Store& store_;
  std::vector<std::function<void()>> waiting_;
  bool busy_ = false;
  std::shared_ptr<int> alive_ = std::make_shared<int>();
  boost::asio::thread_pool thread_{1};  // last: it ends before anything that it uses goes
};

}  // namespace retort
