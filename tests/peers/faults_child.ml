(* A child that breaks off: "faults_child KIND" over stdin and stdout. *)

open Lwt.Syntax

let talk output = function
  | "silent" -> Lwt.return_unit
  | "half-a-size" -> Lwt_io.write output "\001\000"
  | "size-only" -> Lwt_io.write_int output 10
  | "half-a-payload" ->
      let* () = Lwt_io.write_int output 10 in
      Lwt_io.write output "abc"
  | "negative-size" -> Lwt_io.write_int output (-1)
  | kind -> Peer.fail ("no such fault: " ^ kind)

let () =
  let _, output = Peer.channels_over Unix.stdin Unix.stdout in
  Lwt_main.run
    (let* () = talk output Sys.argv.(1) in
     Lwt_io.flush output)
