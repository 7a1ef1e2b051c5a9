(* The OCaml side against itself, without any Python: "self_test NAME".

   One worker a process: a child forked while Lwt had a notification pending,
   such as the SIGCHLD of a worker before it, waits for ever (lwt 5.6.1). *)

open Lwt.Syntax

let converse child parent =
  let* worker =
    Process_worker.run (fun input output () -> child input output) ()
  in
  let* () =
    parent
      (Process_worker.input_channel worker)
      (Process_worker.output_channel worker)
  in
  let* status = Process_worker.close worker in
  Lwt.return (Peer.expect "exit status 0" (status = Unix.WEXITED 0))

let wait_for_ever _ output () =
  let* _ = Process_worker.write_message output (Bytes.of_string "started") in
  fst (Lwt.task ())

let cancelled_by_sigterm () =
  let* worker = Process_worker.run wait_for_ever () in
  let* _ = Process_worker.read_message (Process_worker.input_channel worker) in
  Unix.kill (Process_worker.pid worker) Sys.sigterm;
  let* status = Process_worker.close worker in
  Lwt.return
    (Peer.expect "an end by SIGTERM" (status = Unix.WSIGNALED Sys.sigterm))

let tests =
  [
    ("echo", fun () -> converse Echo.child Echo.parent);
    ("prover", fun () -> converse Prover.child Prover.parent);
    ("sigterm", cancelled_by_sigterm);
  ]

let () = Lwt_main.run ((List.assoc Sys.argv.(1) tests) ())
