#pragma once

#include <functional>
#include <map>
#include <string>

#include "common/model/device.h"
#include "common/model/records.h"
#include "common/store/store.h"
#include "common/wire/messages.h"

namespace retort {

/// What rollouts need of the fleet: Fleet is one, a unit test's another. Thread: reactor.
class DeviceFleet {
 public:
  virtual ~DeviceFleet() = default;
  virtual const std::map<std::string, DeviceRecord>& devices() const = 0;
  virtual const std::map<std::string, DeviceClass>& classes() const = 0;
  virtual bool online(const std::string& device_id) const = 0;
  /// Works out anew what the device should serve, saves it, and tells the device where that changed.
  virtual void reconsider(const std::string& device_id) = 0;
  /// The same artifact as a new generation: for a device that gave up on the last one.
  virtual void renew(const std::string& device_id) = 0;
  /// Desired state of all devices of a class; "" for nothing. `batch` becomes durable with it; `written` is
  /// called when it is, before devices are told.
  virtual Result<DeviceClass> assign(const std::string& name, const std::string& artifact, StoreBatch batch,
                                     const std::function<void()>& written) = 0;
  /// Its devices fall into other classes, in the same write as `batch`; kNotFound.
  virtual Result<void> remove_class(const std::string& name, StoreBatch batch) = 0;
  /// False when the device has no session.
  virtual bool ask_canary(const std::string& device_id, const wire::Canary& canary) = 0;
};

}  // namespace retort
