-- wrk script: POST /v1/ingest/batch, EVENTS events of about 400 bytes a request, every event_id unique.
--   EVENTS=1000  PRIORITY=0..10|mixed   wrk -t1 -c16 -d10s -s perf/load.lua http://127.0.0.1:8000
-- A request is a ready HTTP message in a C buffer; only the id digits change from one to the next, so that
-- wrk itself stays far from being the limit. done() prints one line of JSON.
local ffi = require("ffi")
local EVENTS = tonumber(os.getenv("EVENTS") or 1000)
local PRIORITY = os.getenv("PRIORITY") or "mixed"
local TEMPLATES = 8
local DIGITS = "0123456789abcdef"

local services = {
  { "user-service", { "user_login", "user_logout", "profile_updated" } },
  { "order-service", { "order_created", "order_shipped" } },
  { "payment-service", { "payment_authorized", "payment_captured", "payment_failed" } },
  { "search-service", { "query_executed" } },
}

local thread_count = 0
function setup(thread)
  thread:set("number", thread_count)
  thread_count = thread_count + 1
end

local function pick(list) return list[math.random(#list)] end

-- The text of an event before and after the 12 digits that make its id unique.
local function event(run)
  local service = pick(services)
  local at = os.time() - math.random(0, 20 * 86400)
  local head = string.format('{"event_id":"evt-%s-', run)
  local tail = string.format(
    '","service_name":"%s","event_type":"%s","timestamp":"%s.%03dZ","payload":{"user_id":"user_%06d",' ..
    '"amount":%d.%02d,"currency":"EUR","items":[{"sku":"sku-%05d","quantity":%d},{"sku":"sku-%05d","quantity":1}],' ..
    '"channel":"web","success":%s},"metadata":{"ip_address":"192.0.2.%d","user_agent":"Mozilla/5.0 (X11; Linux)","trace":"%08x"}}',
    service[1], pick(service[2]), os.date("!%Y-%m-%dT%H:%M:%S", at), math.random(0, 999), math.random(0, 999999),
    math.random(1, 999), math.random(0, 99), math.random(0, 99999), math.random(1, 9), math.random(0, 99999),
    math.random(2) == 1 and "true" or "false", math.random(1, 254), math.random(0, 2 ^ 31 - 1))
  return head, tail
end

local templates, turn, counter = {}, 0, 0
local priorities = { 0, 0, 0, 0, 5, 5, 8, 10 }

function init()
  local run = string.format("%08x%02x", os.time() % 2 ^ 32, number)
  math.randomseed(os.time() * 16 + number)
  for index = 1, TEMPLATES do
    local parts, places, length = { '{"events":[' }, {}, 11
    for position = 1, EVENTS do
      local head, tail = event(run)
      if position > 1 then head = "," .. head end
      places[position] = length + #head
      parts[#parts + 1] = head .. "000000000000" .. tail
      length = length + #parts[#parts]
    end
    local priority = PRIORITY == "mixed" and priorities[index] or tonumber(PRIORITY)
    parts[#parts + 1] = string.format('],"priority":%d}', priority)
    local body = table.concat(parts)
    local header = string.format("POST /v1/ingest/batch?%s HTTP/1.1\r\nHost: %s:%s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n",
      os.getenv("QUERY") or "", wrk.host, wrk.port, #body)
    local message = header .. body
    local buffer = ffi.new("uint8_t[?]", #message)
    ffi.copy(buffer, message, #message)
    for position = 1, EVENTS do places[position] = places[position] + #header end
    templates[index] = { buffer = buffer, length = #message, places = places }
  end
end

function request()
  turn = turn % TEMPLATES + 1
  local template = templates[turn]
  local buffer, places = template.buffer, template.places
  for position = 1, EVENTS do
    counter = counter + 1
    local value, place = counter, places[position]
    for digit = 11, 0, -1 do
      if value == 0 then break end
      local low = value % 16
      buffer[place + digit] = DIGITS:byte(low + 1)
      value = (value - low) / 16
    end
  end
  return ffi.string(buffer, template.length)
end

function done(summary, latency)
  local refused = summary.errors.status
  local answered = summary.requests - refused
  local socket_errors = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  local percentiles = {}
  for _, percentile in ipairs({ 0, 10, 20, 30, 40, 50, 60, 70, 75, 80, 85, 90, 92, 94, 95, 96, 97, 98, 99, 99.5, 99.8, 99.9, 99.99 }) do
    percentiles[#percentiles + 1] = string.format("[%g,%.3f]", percentile, latency:percentile(percentile) / 1e3)
  end
  io.write(string.format(
    '{"requests":%d,"refused":%d,"socket_errors":%d,"seconds":%.3f,"events":%d,"percentiles_ms":[%s]}\n',
    answered, refused, socket_errors, summary.duration / 1e6, answered * EVENTS, table.concat(percentiles, ",")))
end
