-- {worker, beat, leave}: with `beat` notes that the worker is alive, with `leave` ends its own
-- leases, and otherwise those of dead workers, up to a bounded number: {ended}.
if request.leave then return cjson.encode({ended = end_leases(request.worker, REAP_BATCH)}) end
if request.beat then renew(request.worker) end
return cjson.encode({ended = reap(request.worker)})
